"""What a response is worth: a reward model, a judge, a Python function, or a weighted sum of them."""
