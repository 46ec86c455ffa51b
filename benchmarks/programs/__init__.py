"""Programs of public repositories, as they are: each is run with a watch of stabwatch on each optimizer that it makes.

Nothing in them is changed. What they need and what is not installed has a stand-in (`stand_ins/`): environments with
the dynamics of CartPole and Pendulum under the names of gym and gymnasium, scikit-learn's digits as the data set of
torchvision, and objects that do nothing for plots.
"""
