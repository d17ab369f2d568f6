"""LoRA: the layer, putting it into a model, and adapters on disk."""
