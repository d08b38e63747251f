"""Agreement with the field's own implementation: the same methods, model, items and budgets in kvpress and here."""
