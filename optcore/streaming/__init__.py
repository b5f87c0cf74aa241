"""A model read layer by layer: memory follows the largest layer, not the model."""
