"""Flower ClientApp: one file for each method half, with the same stems as the strategies."""

from leansplit.clients.app import client_app, split_client_app
from leansplit.clients.workload import Workload

__all__ = ["Workload", "client_app", "split_client_app"]
