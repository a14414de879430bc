"""The models that are there: the list of them, and what differs between them."""
