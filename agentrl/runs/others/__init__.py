"""Rollouts that other trainers wrote, as the rows of a run's rollout files. One file a format. No torch, no pickle."""
