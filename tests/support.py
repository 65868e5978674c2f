"""What tests of several folders share."""


def of_torch(tensors, name):
    """Return a tensor of a plan from those of a torch module, where one may hold three of the plan's."""
    whole, _, part = name.rpartition(".")
    if whole.endswith("in_proj_weight"):
        return tensors[whole].chunk(3)[("query", "key", "value").index(part)]
    return tensors[name]


def scale_of_torch(name):
    """Return the parameter of a torch module that holds the scale of a tensor of a plan."""
    return f"{name.replace('in_proj_weight.', 'in_proj_weight_')}_scale"
