"""Recipes, presets, and what every layer agrees on: errors, locations, stages."""
