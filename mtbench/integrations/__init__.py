"""mtbench beside other people's tools: Lightning, Accelerate, MLflow, TensorBoard.

Each module needs the library that it is named after, which is an extra of mtbench's.
"""
