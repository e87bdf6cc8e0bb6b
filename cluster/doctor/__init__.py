"""Can these nodes work together?"""
