"""Small clients to start from, one folder for each language; README.md beside this file tells how to run them."""
