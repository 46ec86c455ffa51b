"""Public failure reports of PyTorch trainings, reproduced as small runs with a healthy twin, and healthy workloads."""
