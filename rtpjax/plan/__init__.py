"""What a model needs and can reach on a GPU, from the GPU's own compiler, with no GPU present."""
