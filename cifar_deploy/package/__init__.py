"""Folders and archives that stand alone: an exported file and what runs it, without Python."""
