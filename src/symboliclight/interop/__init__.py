"""Bridges to other people's formats; each module is imported only when asked for."""
