"""What a composed train config means, without torch: resolvers of `conf/`, kinds of its values, its shape and budget.

Training goes by it, and so does a sweep, which plans runs that it does not train itself.
"""
