"""Protections taken out one at a time: do the tests notice?"""
