"""Late denoising steps: the last share of the steps, so that a setting means the same of 20 steps and of 40."""


def late(num_steps: int, share: float) -> int:
    """How many steps the last `share` of `num_steps` are: at least one."""
    return max(1, round(share * num_steps))
