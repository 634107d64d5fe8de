"""The analysis of runs: the job, and the Dask clusters it may run on."""
