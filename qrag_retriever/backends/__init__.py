"""What embeds chunks: torch, ONNX Runtime or OpenVINO, which give the same embeddings, or ONNX Runtime in int8."""
