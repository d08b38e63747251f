"""The media whose stores can be looked through: one module each."""
