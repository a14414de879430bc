"""TensorRT engines: one way through both members of the family, to build and to open them."""
