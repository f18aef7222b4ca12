"""Agents on this machine."""
