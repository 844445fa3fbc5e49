"""What would this unit like to see? Pictures made for targets, by gradient, by evolution and through generators."""
