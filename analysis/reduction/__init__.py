"""From stored blocks to softmaxes and reductions over them."""
