"""Commands that use a trained run: generate, translate, listen, watch."""
