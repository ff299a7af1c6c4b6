"""Solution of exercise 18: decay pulls a norm's weight towards 0, not towards the 1 at which it does nothing; vectors are left out."""


def decayed(parameters, *, lr, decay):
    """{name: array} after the decay of one step."""
    return {name: w - lr * decay * w if w.ndim >= 2 else w for name, w in parameters.items()}


def laws(decayed, rng):
    """What must hold, whatever the weights: what is looked at -> (found, expected)."""
    shapes = {
        "wte.weight": (7, 4),
        "h.0.ln_1.weight": (4,),
        "h.0.ln_1.bias": (4,),
        "h.0.mlp.c_fc.weight": (4, 6),
        "h.0.mlp.c_fc.bias": (6,),
    }
    before = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    after = decayed({name: w.copy() for name, w in before.items()}, lr=0.1, decay=0.2)
    kept = {name: 1 if len(shape) == 1 else 0.98 for name, shape in shapes.items()}
    return {name: (after[name], kept[name] * before[name]) for name in shapes}
