"""leansplit: hybrid-order split federated learning; clients never run backpropagation."""
