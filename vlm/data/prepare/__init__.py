"""What a careful colleague would say of a table and its images before anybody trains on them."""
