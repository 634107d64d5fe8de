"""Changes to what a model attends to, or learns to: losses over attention, ablation of reference tokens."""
