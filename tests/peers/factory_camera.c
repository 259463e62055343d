/* A GigE Vision camera that we did not write (the simulator of Aravis), whose pictures are ours: a
 * grey texture, the number of the picture in its first 8 bytes (little endian), and on pictures 7,
 * 17, 27, ... a dark defect of 32 x 8 pixels from (100, 10) on.
 *
 * factory_camera [SHARE_OF_PACKETS_LOST]
 *
 * Listens on 127.0.0.1, says "listening", and runs until its standard input ends.
 */
#include <arv.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static void fill(ArvBuffer *buffer, void *unused, guint32 exposure_us, guint32 gain, ArvPixelFormat format)
{
    static uint64_t made = 0;
    uint64_t number = made++;
    size_t width = arv_buffer_get_image_width(buffer), height = arv_buffer_get_image_height(buffer);
    size_t deep = ARV_PIXEL_FORMAT_BIT_PER_PIXEL(format) / 8;
    size_t unset; /* The simulator tells no size here. */
    uint8_t *bytes = (uint8_t *) arv_buffer_get_data(buffer, &unset);

    for (size_t i = 0; i < width * height * deep; i++)
        bytes[i] = 110 + ((i * 2654435761u ^ number * 40503u) >> 20 & 15);
    if (number % 10 == 7)
        for (size_t y = 10; y < 18 && y < height; y++)
            for (size_t x = 100 * deep; x < 132 * deep && x < width * deep; x++)
                bytes[y * width * deep + x] = 10;
    for (int i = 0; i < 8; i++)
        bytes[i] = number >> 8 * i;
}

int main(int argc, char **argv)
{
    ArvGvFakeCamera *camera = arv_gv_fake_camera_new("127.0.0.1", "LINE1");

    if (!arv_gv_fake_camera_is_running(camera)) {
        fprintf(stderr, "factory_camera: it does not run; is port 3956 of 127.0.0.1 taken?\n");
        return 1;
    }
    if (argc > 1)
        g_object_set(camera, "gvsp-lost-ratio", atof(argv[1]), NULL);
    arv_fake_camera_set_fill_pattern(arv_gv_fake_camera_get_fake_camera(camera), fill, NULL);
    printf("listening\n");
    fflush(stdout);
    while (getchar() != EOF)
        ;
    return 0;
}
