"""Exports a trained classifier for programs without Keras: SavedModel, ONNX or TFLite, with a model card."""
