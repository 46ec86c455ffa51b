def save_image(*given, **more):
    pass
