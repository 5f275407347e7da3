"""Parameter averaging: FedAvg and its family, robust rules, server optimisers."""
