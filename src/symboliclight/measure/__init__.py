"""What a model is worth and costs: loss, benchmarks, silence, operations, energy, what a precision loses."""
