"""What runs the tower: torch, or on a CPU graphs of OpenVINO and ONNX Runtime.

An engine changes how fast the tokens are computed, never which: the checkpoint is the same for all.
`benchmarks/engines.py` measures by how much scores, verdicts and speed differ between them.
"""
