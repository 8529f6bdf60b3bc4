"""The CNI plugin: a static C binary, its readable Python twin, and the installer. Imports nothing of ours."""
