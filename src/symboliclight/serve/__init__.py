"""A model behind HTTP: `create_app(Service(...))` answers as OpenAI's API does (docs/reference/serving.md)."""
