"""What every room speaks: configurations, folders on disk, tokenizer, errors, locks, and where a figure comes from."""
