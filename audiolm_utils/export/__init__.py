"""Models for devices without PyTorch: ONNX graphs of a trained model, and a runner on onnxruntime and numpy."""
