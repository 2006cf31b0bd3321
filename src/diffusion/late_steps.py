"""Late denoising steps: the last share of the steps, so that a setting means the same for 20 and for 40 steps."""


def late(num_steps: int, share: float) -> int:
    """How many steps the last `share` of `num_steps` are: at least one."""
    return max(1, round(share * num_steps))
