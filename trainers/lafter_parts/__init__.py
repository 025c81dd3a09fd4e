"""What LaFTer and its two children are made of: texts first, then teachers, students and targets; what is checked and drawn."""
