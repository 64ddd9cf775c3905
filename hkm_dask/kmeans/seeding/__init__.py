"""Seeding: methods of choosing the initial centroids."""
