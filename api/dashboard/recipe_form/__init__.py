"""The form of a recipe, made from the recipe's JSON schema: no field is named here that the form must have."""
