"""What a recipe will lead to: which tools merge it whole, what mergekit would drop, how far apart the endpoints are."""

from dami_merge.forecast.recipe_outlook import RecipeOutlook, look_ahead

__all__ = ["RecipeOutlook", "look_ahead"]
