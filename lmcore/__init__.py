"""Text in, a transformers language model out: pure PyTorch and Arrow, without Prefect."""
