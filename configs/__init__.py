"""Recipes, presets, and what every layer agrees on: errors, locations, stages. No torch, no other package."""
