"""Deployments of the flows, and the settings that ship with them."""
