"""Reconciles for as long as the process lives. Only this package schedules."""
