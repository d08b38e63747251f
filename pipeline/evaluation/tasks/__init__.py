"""Tasks with known answers: items made offline from a seed, sized with the model's own tokenizer."""
