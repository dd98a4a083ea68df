"""The towers and the model made of them: tensors in, tensors out."""
