"""Devices and processes: the mesh and its shardings, and several processes that work as one."""
