"""What compressing a model means in every framework: plan, report, warm start."""
